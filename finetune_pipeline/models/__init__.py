"""The base model: its source, files, license and sizes, and the device and precision it is computed with."""
