"""The program that the desk sends to a device: it needs a Python and nothing else.

It is sent whole at every contact (channel.py), so it is always of the desk's version. All it writes lies in
one folder of the device, ~/.cache/gft-edge/device:

    store/     files by their sha256; store/incoming those on their way
    work/      what one contact placed for its commands, removed when the desk is gone
    package/   gft-edge itself, a folder a version
    env/       virtual environments with what it requires, one a Python
    cache/     what engines remember (compiled models, kernels), and temporary files
"""
