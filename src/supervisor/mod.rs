//! kprov's own init: services kept running where systemd is not PID 1.
