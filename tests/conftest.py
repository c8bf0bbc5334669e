"An interrupt reaches what tests start, also when they run in the background: shells start such jobs with SIGINT ignored, and children inherit that."
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
