"""Benches are no installed package: they are found in the checkout, before any test imports one."""

from blip_fast.cli.bench import import_bench

import_bench()
