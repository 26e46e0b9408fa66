"""The main job, from data to report: what ``sde-models demo`` runs."""

from sde_models.demo.run import DemoSettings, own_demo, run_demo, summary

__all__ = ["DemoSettings", "own_demo", "run_demo", "summary"]
