"""The programs that make the documentation: executed tutorials, reference pages, formulas."""
