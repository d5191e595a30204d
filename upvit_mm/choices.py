"""Names among which a user chooses.

The command line and the code behind it share them. Parsers import no torch, so that a typo is answered at once.
"""

WEIGHTS = ('ema', 'raw')  # of a checkpoint that holds both: averages, or what was trained
CRITERIA = (
    'posterior',
    'tokens',
    'loss',
)  # what an importance looks at: ``pruning/criteria.py``
HEAD_POLICIES = ('within', 'select', 'regroup')  # which channels of heads go: ``pruning/planner.py``
PRECISIONS = ('bf16',)  # below float32, in which a score may be computed: ``pruning/importance.py``
FILLS = ('zeros', 'nearest', 'last')  # of dropped tokens: ``compare/kept_tokens.py``
EXPORTED = ('backbone', 'neck', 'classifier')  # parts of a network in one ONNX file: ``export/parts.py``
# by device: widths of heads that kernels of attention like are multiples of it (``layers/attention.py``)
KERNEL_WIDTHS = {'cpu': 16, 'cuda': 8}
REPAIRED = {  # networks that repairs are compared on: ``benchmark/repairs.py``
    'half': 'half of attention and FFN',
    'alike': 'the budget, all widths alike',
    'tokens': 'the budget, widths by token scores',
    'posterior': 'the budget, widths by posterior scores',
}
