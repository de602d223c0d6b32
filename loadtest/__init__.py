"""Load tests whose latencies count from the time a request should have left: `limbeck loadtest`."""
