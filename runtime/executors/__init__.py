"""Executors run one forward of the step contract; nothing else in the runtime touches a device."""
