"""What is measured, one file a level: each gives the checks of an artifact on a target, to be run one by one."""
