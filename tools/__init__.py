"""What makes or measures the project and is no part of the package: a checkout has it, a wheel does not.

The commands that run it (`rtdmd world`, `bench`, `variance`, `verify --study`) find it with
`rtdmd.common.checkout.tool`.
"""
