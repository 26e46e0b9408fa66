"""The main job, from data to report: what ``sde-models demo`` runs."""

from sde_models.demo.run import DemoSettings, run_demo, summary

__all__ = ["DemoSettings", "run_demo", "summary"]
