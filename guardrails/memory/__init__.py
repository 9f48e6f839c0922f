"""Memory as it is: what processes really hold, what the machine and its cgroups really allow."""
