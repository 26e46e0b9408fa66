"""Programs that build the documentation: executed tutorials, reference pages, formulas."""
