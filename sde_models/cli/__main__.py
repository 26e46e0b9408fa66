"""``python -m sde_models.cli`` is ``sde-models``."""

from sde_models.cli import app

if __name__ == "__main__":
    app()
