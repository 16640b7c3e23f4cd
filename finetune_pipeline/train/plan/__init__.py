"""The plan of a training, before it runs: memory, time, cost, the devices and methods that it fits."""
