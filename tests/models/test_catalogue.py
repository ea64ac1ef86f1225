"""The catalogue of built-in types matches the registry and the short names."""

import re

from rushlight.checkpoint.short_names import SHORT_NAMES
from rushlight.models.catalogue import CATALOGUE
from rushlight.models.registry import MODULES

PUBLISHED = {published.repo_id: published for each in CATALOGUE for published in each.published}


def test_every_built_in_type_is_in_the_catalogue():
    types = [each.model_type for each in CATALOGUE]
    assert len(types) == len(set(types))
    assert set(MODULES) <= set(types)


def test_every_short_name_is_in_the_catalogue():
    assert {*SHORT_NAMES.values()} - {*PUBLISHED} == set()


def test_sizes_and_contexts_are_plausible():
    for published in PUBLISHED.values():
        assert re.fullmatch(r"\d+(\.\d)?[MB]", published.size)
        assert 512 <= published.context <= 2**17
    for each in CATALOGUE:
        sizes = [
            float(published.size[:-1]) * (1000 if published.size[-1] == "B" else 1) for published in each.published
        ]
        assert sizes == sorted(sizes)
        assert each.title
        assert not each.special.endswith(".")
