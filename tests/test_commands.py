"Commands: the words of other programs, precision, room and devices, the length of a training, paths that are looked at first, validation, unreadable pictures."
