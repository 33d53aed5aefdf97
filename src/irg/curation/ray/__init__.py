"""Stages of a build on Ray."""
