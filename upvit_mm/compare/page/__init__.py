"""One HTML page of everything that the tools left: accuracy, costs, widths, consistency, pictures, commands."""

from upvit_mm.compare.page.write import write_page

__all__ = ['write_page']
