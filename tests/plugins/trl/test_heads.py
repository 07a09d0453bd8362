"""The head that TRL's trainers are given: what it returns, and on which models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from logitless.integrations.trl import hooks, install, uninstall
from logitless.integrations.trl.head import FIELDS, add_head
from tests.plugins.trl.setting import VOCAB, plain_model, save_model

pytestmark = pytest.mark.filterwarnings("ignore")


def module(name: str) -> Any:
    import importlib

    return importlib.import_module(name)


def test_install_and_uninstall() -> None:
    names = [hooks.UTILS, *hooks.TRAINERS]
    before = [getattr(module(name), hooks.HEAD) for name in names]
    assert add_head not in before
    with install():
        assert all(getattr(module(name), hooks.HEAD) is add_head for name in names)
        with install():
            pass
        assert getattr(module(hooks.UTILS), hooks.HEAD) is add_head
    assert [getattr(module(name), hooks.HEAD) for name in names] == before
    install()
    uninstall()
    uninstall()
    assert [getattr(module(name), hooks.HEAD) for name in names] == before


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("kind", ["Qwen2", "Gemma2"])
def test_fields_are_trls(kind: str, shifted: bool, tmp_path: Path) -> None:
    capped = {"final_logit_softcapping": 3.0} if kind == "Gemma2" else {}
    folder = save_model(tmp_path, kind, **capped)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB, (3, 12), generator=g)
    labels = ids.masked_fill(torch.rand(3, 12, generator=g) < 0.4, -100)
    outputs = []
    for add in (module(hooks.UTILS).add_fused_lm_head, add_head):
        model = plain_model(folder)
        plain = model(input_ids=ids).logits
        add(model, temperature=0.8, outputs=FIELDS)
        assert torch.equal(model(input_ids=ids).logits, plain)
        given = {"shift_labels" if shifted else "labels": labels}
        outputs.append(model(input_ids=ids, **given, num_items_in_batch=5, fused_lm_head=True))
    theirs, ours = outputs
    assert type(ours) is type(theirs)
    assert ours.keys() == theirs.keys()
    for name in theirs.keys():  # noqa: SIM118
        assert ours[name].shape == theirs[name].shape
        assert ours[name].dtype == theirs[name].dtype, name
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cohere", "gemma2", "granite", "mpt", "recurrent_gemma", "xlstm"])
def test_log_probs_are_those_of_the_logits(kind: str) -> None:
    """With softcap and scale away from neutral, also where TRL's own head has others."""
    from tests.integrations.tiny_models import tiny

    model = tiny(kind)
    ids = torch.randint(3, 90, (2, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logp = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
        expected = logp.gather(-1, ids[:, 1:, None])[..., 0]
        add_head(model)
        found = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_an_output_that_is_not_known(tmp_path: Path) -> None:
    model = plain_model(save_model(tmp_path))
    with pytest.raises(ImportError, match=r"looked for outputs.*in trl \d.*\{'rank'\}"):
        add_head(model, outputs=("log_probs", "rank"))
