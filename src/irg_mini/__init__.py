"""The laboratory in which irg-mini is made: its world, its encoders and detectors, its data, its measurements.

It uses ``irg`` and enters it by plug-ins; ``irg`` never imports it."""
