"""Gates: guards that decide whether one attempt may run. One file each; none knows another."""
