"""The demonstration of ``sde-models demo``, from data to report."""

from sde_models.demo.run import DemoSettings, own_demo, run_demo, summary

__all__ = ["DemoSettings", "own_demo", "run_demo", "summary"]
