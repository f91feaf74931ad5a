"""Tests of the packaged config."""
