"""What runs inside a worker process. Imports the protocol alone; runs on Python 3.10 and later."""
