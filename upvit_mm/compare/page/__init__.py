"""One HTML page with all results of the tools: accuracy, costs, widths, consistency, pictures, commands."""

from upvit_mm.compare.page.write import write_page

__all__ = ['write_page']
