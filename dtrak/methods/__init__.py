"""Attribution methods, their settings, and the attributor that runs one."""
