"""The reference: plain torch functions over the paged cache, the oracle of every kernel.

They compute in the dtype they are given (fp32 for an oracle) and run on any torch device.
"""
