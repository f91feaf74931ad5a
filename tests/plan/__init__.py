"""Tests of launcher.plan."""
