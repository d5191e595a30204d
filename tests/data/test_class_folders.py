"""Class folders and lists: what would shift labels or lose classes is refused, and the advice leads to a right run."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from upvit_mm.data.checks import check_datasets

PETS = ('cat', 'dog', 'eel')


def refused(cfg, parts=('train', 'val')) -> str:
    try:
        check_datasets(cfg, parts)
    except ValueError as error:
        return str(error)
    return pytest.fail('passed')


@pytest.fixture
def pets(tmp_path):
    return tmp_path / 'pets'


def settings_of(cfg, part):
    return cfg[f'{part}_dataloader']['dataset']


# ------------------------------------------------------------------------- folders


def test_good_folders_pass(class_folders, pets):
    cfg = class_folders(PETS, PETS)
    (pets / 'train/cat/a.png').rename(pets / 'train/cat/a.PNG')
    (pets / 'train/dog/more').mkdir()
    (pets / 'train/dog/a.png').rename(pets / 'train/dog/more/a.png')
    check_datasets(cfg, ('train', 'val'))
    settings_of(cfg, 'train')['data_prefix'] = dict(img_path='train')
    check_datasets(cfg, ('train', 'val'))


@pytest.mark.parametrize('name', ['.ipynb_checkpoints', '.git', '__MACOSX', '@eaDir'])
@pytest.mark.parametrize('part', ['train', 'val'])
def test_folders_of_other_programs_are_no_classes(name, part, class_folders, pets):
    cfg = class_folders()
    shutil.copytree(pets / part / 'cat', pets / part / name)
    message = refused(cfg)
    assert message.startswith(
        f"data folder '{pets}/{part}' holds folders that other programs have left ({name}): mmpretrain takes them for "
        'classes, so that labels are shifted. Remove them: rm -r '
    )
    subprocess.run(message.partition('Remove them: ')[2], shell=True, check=True)
    check_datasets(cfg, ('train', 'val'))
    assert sorted(path.name for path in (pets / part).iterdir()) == ['cat', 'dog']


def test_folders_of_other_programs_in_classes(class_folders, pets):
    """Network storage leaves a thumbnail of every picture, in every folder."""
    names = tuple('abcdefg')
    cfg = class_folders(names, names)
    for name in names:
        shutil.copytree(pets / 'train' / name, pets / f'train/{name}/@eaDir/a.png')
    shutil.copytree(pets / 'train/a', pets / 'train/a/.ipynb_checkpoints')
    message = refused(cfg)
    assert '(a/.ipynb_checkpoints, a/@eaDir, b/@eaDir, c/@eaDir, d/@eaDir): their images count as images' in message
    subprocess.run(message.partition('Remove them: ')[2], shell=True, check=True)
    check_datasets(cfg, ('train', 'val'))
    assert len(list((pets / 'train').rglob('*.png'))) == 7


def test_classes_that_one_part_lacks(class_folders, pets):
    cfg = class_folders(PETS, ('cat', 'eel', 'fox'))
    message = refused(cfg)
    assert message == (
        f"data folder '{pets}/val' (val_dataloader.dataset) has other class folders than '{pets}/train' "
        '(train_dataloader.dataset), so that labels mean other classes: dog missing, fox more. To correct it, put '
        'images of dog there, or make empty folders for them; remove fox, or put training images of them in '
        f"'{pets}/train'."
    )
    shutil.rmtree(pets / 'val/fox')
    (pets / 'val/dog').mkdir()
    check_datasets(cfg, ('train', 'val'))


def test_training_folders_are_compared_with_when_only_others_are_read(class_folders, pets):
    """Two classes of one name each, so that numbers agree."""
    cfg = class_folders(('cat', 'dog'), ('ape', 'cat'))
    assert 'labels mean other classes: dog missing, ape more.' in refused(cfg, ('val',))
    shutil.rmtree(pets / 'train')
    check_datasets(cfg, ('val',))


def test_folders_whose_names_look_alike(class_folders, pets):
    message = refused(class_folders(('cat', 'dog'), ('Cat', 'dog')))
    assert (
        "cat missing, Cat more (different only in case or blanks: 'cat' for 'Cat'). To correct it, rename " in message
    )
    assert message.endswith("rename 'Cat' to 'cat'.")
    (pets / 'val/Cat').rename(pets / 'val/cat')
    check_datasets(class_folders(), ('train', 'val'))


def test_classes_without_images(class_folders, pets, caplog):
    cfg = class_folders(PETS, PETS)
    (pets / 'train/cat/a.png').rename(pets / 'train/cat/.a.png')
    message = refused(cfg)
    assert re.search(r"train': 1 of 3 class folders have no image \(.jpg, .*\): cat\. Put images there", message)
    check_datasets(dict(cfg, train_dataloader=None), ('val',))
    (pets / 'val/eel/a.png').unlink()
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(dict(cfg, train_dataloader=None), ('val',))  # labels are right all the same
    assert caplog.messages == [
        f"data folder '{pets}/val': 1 of 3 class folders have no image (eel): these classes are not evaluated"
    ]


def test_pictures_that_mmpretrain_does_not_read(class_folders, pets, caplog):
    cfg = class_folders()
    for name in ('b.WEBP', 'c.tiff', 'notes.txt', 'd.heic'):
        (pets / 'train/cat' / name).touch()
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(cfg, ('train', 'val'))
    endings = "('.jpg', '.jpeg', '.png', '.ppm', '.bmp', '.pgm', '.tif', '.tiff', '.webp')"
    assert caplog.messages == [
        f'data folder {pets}/train: 1 .heic, 1 .tiff, 1 .webp files are not read by mmpretrain; set '
        f'extensions={endings} in train_dataloader.dataset'
    ]
    (pets / 'train/cat/a.png').unlink()
    message = refused(cfg)
    assert (
        'have no image that mmpretrain reads (.jpg, .jpeg, .png, .ppm, .bmp, .pgm, .tif): cat, which hold ' in message
    )
    assert message.endswith(f'1 .heic, 1 .tiff, 1 .webp; set extensions={endings} in train_dataloader.dataset.')
    settings_of(cfg, 'train')['extensions'] = ('.webp', '.PNG', '.tiff')
    check_datasets(cfg, ('train', 'val'))


def test_a_folder_of_parts(class_folders, pets):
    cfg = class_folders(data_prefix='')
    assert (
        refused(cfg)
        == f"data folder '{pets}': train, val are parts of the data, not classes; set data_prefix to one of them."
    )
    cfg = class_folders(data_prefix='train/cat')
    assert (
        refused(cfg) == f"data folder '{pets}/train/cat' has no class folders; set data_prefix to the folder that has."
    )


def test_listed_classes(class_folders, pets, caplog):
    check_datasets(class_folders(metainfo=dict(classes=('cat', 'dog'))), ('train', 'val'))
    check_datasets(class_folders(classes=('cat', 'dog')), ('train', 'val'))
    for setting in (dict(metainfo=dict(classes=('dog', 'cat'))), dict(classes=['dog', 'cat'])):
        message = refused(class_folders(**setting))
        assert message == (
            f"train_dataloader.dataset: classes = dog, cat are not the class folders of '{pets}/train' in their order "
            "(cat, dog), which decides the labels. Set metainfo=dict(classes=('cat', 'dog'))."
        )
    assert "case or blanks: 'Dog' for 'dog')" in refused(class_folders(metainfo=dict(classes=('Dog', 'cat'))))
    assert 'has 2 class folders, train_dataloader.dataset lists 3: list the' in refused(class_folders(classes=PETS))
    assert caplog.messages == []
    with caplog.at_level('WARNING', 'upvit_mm'):
        check_datasets(class_folders(classes=('Felis', 'Canis')), ('train',))
    assert caplog.messages == [
        f"train_dataloader.dataset: classes and folders of {pets}/train have different names; make sure that 'cat' is "
        'Felis, and so on'
    ]


def test_image_net_has_a_thousand_classes(class_folders, pets):
    cfg = class_folders(type='ImageNet', data_prefix='')
    for part in ('train', 'val'):
        settings_of(cfg, part)['split'] = part
    assert (
        refused(cfg) == f"data folder '{pets}/train' has 2 class folders, ImageNet has 1000: take type='CustomDataset'."
    )
    for part in ('train', 'val'):
        settings_of(cfg, part).update(metainfo=dict(classes=('cat', 'dog')))
    check_datasets(cfg, ('train', 'val'))
    settings_of(cfg, 'val')['split'] = 'test'  # has no labels
    with pytest.raises(FileNotFoundError, match=r"test' does not exist"):
        check_datasets(cfg, ('val',))


@pytest.mark.parametrize('kind', ['mmpretrain.CustomDataset', 'class', 'subclass'])
def test_all_ways_to_write_the_type(kind, class_folders, pets):
    from mmpretrain.datasets import CustomDataset

    kind = {'class': CustomDataset, 'subclass': type('Pets', (CustomDataset,), {})}.get(kind, kind)
    cfg = class_folders(type=kind, backend_args=dict(backend='local'))
    shutil.copytree(pets / 'val/cat', pets / 'val/.trash')
    assert 'other programs have left (.trash)' in refused(cfg)


# --------------------------------------------------------------------------- lists


@pytest.fixture
def listed(class_folders, pets):
    """``listed(text)``: a config whose training images and labels stand in a file of that text."""

    def make(text: str, **settings):
        cfg = class_folders()
        settings_of(cfg, 'train').update(ann_file='list.txt', **settings)
        (pets / 'list.txt').write_text(text)
        return cfg

    return make


def test_lists(listed):
    check_datasets(listed('cat/a.png 0\ndog/a.png 1\n'), ('train', 'val'))
    check_datasets(listed('cat/a.png\n', with_label=False), ('train',))


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'cat/a.png 1\ndog/a.png 2\n',
            'labels from 1 to 2: with num_classes = 2 they must lie in 0 to 1. Labels count fro',
        ),
        ('cat/a.png 0\ndog/a.png 7\n', r'labels from 0 to 7: with num_classes = 2 they must lie in 0 to 1\.$'),
        ('cat/a.png 0\ndog/a.png -1\n', 'labels from -1 to 0'),
        (
            'cat/a.png 0\ndog/a.png\n',
            "line 2: 'dog/a.png' has no label; each line must be a path, a blank and a number",
        ),
        ('cat/a.png\t0\n', 'line 1: .* has no label'),
        ('cat/a.png 0\n\ndog/a.png 1\n', "line 2: '' has no label"),
    ],
)
def test_labels_that_cannot_be(text, message, listed):
    with pytest.raises(ValueError, match=message):
        check_datasets(listed(text), ('train',))


def test_a_list_that_is_not_there(listed, pets):
    cfg = listed('')
    (pets / 'list.txt').unlink()
    with pytest.raises(FileNotFoundError, match=r"list.txt' does not exist"):
        check_datasets(cfg, ('train',))


def test_the_list_of_image_net(class_folders, pets):
    cfg = class_folders(type='ImageNet', split='train', data_prefix='', metainfo=dict(classes=('cat', 'dog')))
    (pets / 'meta').mkdir()
    (pets / 'meta/train.txt').write_text('cat/a.png 2\n')
    with pytest.raises(ValueError, match=r"meta/train.txt' has labels from 2 to 2"):
        check_datasets(cfg, ('train',))
