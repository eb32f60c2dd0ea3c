"""Muon's update: singular values made equal, each map of a stacked matrix by itself, the size of AdamW's."""

from __future__ import annotations

import torch

from common.modeling.muon import muon_update, orthogonalise


def test_orthogonalise_equalises_singular_values() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    for result in (orthogonalise(matrices), orthogonalise(matrices.mT).mT):
        values = torch.linalg.svdvals(result)
        assert float(values.min()) > 0.5
        assert float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity((u @ v).flatten(1), orthogonalise(matrices).flatten(1))
    assert float(cosine.min()) > 0.95


def test_stacked_maps_are_turned_one_by_one() -> None:
    gate, up = torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    both = muon_update(torch.cat((gate, 5 * up), dim=1), maps=2)
    torch.testing.assert_close(both, torch.cat((muon_update(gate), muon_update(up)), dim=1))
    assert not torch.allclose(both, muon_update(torch.cat((gate, 5 * up), dim=1)), atol=1e-2)


def test_the_update_has_the_root_mean_square_of_adamw() -> None:
    update = muon_update(torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(2)))
    assert 0.1 < float(update.square().mean().sqrt()) < 0.3
