"""One file a workload.  Each has a function `run(options) -> Result` and asserts its premises.

`NAMES` is the order in which they run and are reported; a new workload adds its module here.
"""

NAMES = (
    "get_hot",
    "get_miss",
    "get_large",
    "get_dict",
    "local",
    "once",
    "wakeup",
    "namespace",
    "set_full",
    "set_large",
    "cold",
    "scaling",
    "tail",
    "stopped_writer",
    "swap",
    "memory",
    "attach",
    "ring",
    "peers_latency",
    "peers_cold",
    "peers_scaling",
    "kill_storm",
    "footprint",
    "growth",
    "hit_ratio",
    "instructions",
)
