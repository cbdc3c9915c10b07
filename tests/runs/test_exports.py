"""What a trained run is written as for other programs: adapters and merged bases, with a card."""

import dataclasses
import json
import re
import shlex
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import toys

import ftn_jax
from ftn_jax.cli import ftn
from ftn_jax.core.errors import InputError
from ftn_jax.models.decoder import merged
from ftn_jax.models.families import FAMILIES
from ftn_jax.models.hub import PACKAGED
from ftn_jax.models.writing import tensors_of
from ftn_jax.pools.peft import read_peft
from ftn_jax.runs.generation import Settings, generate_file

pytestmark = pytest.mark.slow  # one Python is enough: it compiles many programs

PAIRS = [(f"{text}\n", text.upper()) for text in toys.SHORT[:6]]


@pytest.fixture(scope="module")
def folder(files_run):
    lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in PAIRS]
    (files_run / "support.jsonl").write_text("\n".join(lines))
    return files_run


@pytest.fixture(scope="module")
def model(folder):
    return ftn_jax.load(folder / "run")


def without_components(model, base):
    """The model on another base; its losses under no mask are that base's own."""
    return dataclasses.replace(model, base=base, pool=model.pool.replace(base=base.params, model=base.config))


def refused(capsys, code, said, *arguments):
    with pytest.raises(SystemExit) as ended:
        ftn.run(arguments[0], list(arguments))
    told = capsys.readouterr().err
    assert ended.value.code == code and said in told and told.count("\n") == 1, told


def test_a_merged_folder_is_a_base_that_answers_as_the_mask_does(folder, model, tmp_path, capsys):
    given = [f"--workdir={folder / 'run'}", f"--support={folder / 'support.jsonl'}", f"--output={tmp_path / 'out'}"]
    ftn.run("merge", ["merge", *given])
    said = capsys.readouterr().out
    found = model.recover(PAIRS)
    assert said.splitlines()[-1].startswith(
        f"merged into {tmp_path / 'out'}: base {folder / 'base'} with the mask found"
    )
    written = ftn_jax.load_base(str(tmp_path / "out"))
    assert written.config == model.base.config and written.hash != model.base.hash
    assert written.tokens.ends == model.base.tokens.ends == (0, 5)
    alone = without_components(model, written)
    own = model.example_losses(PAIRS, found)
    np.testing.assert_allclose(alone.example_losses(PAIRS, None), own, rtol=1e-5, atol=1e-5)
    assert np.abs(model.example_losses(PAIRS, None) - own).min() > 0.01
    assert alone.generate([PAIRS[0][0]], None, tokens=8) == model.generate([PAIRS[0][0]], found, tokens=8)
    base = folder / "base"
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (base / file).read_bytes()
    own_config, raw = (json.loads((place / "config.json").read_text()) for place in (base, tmp_path / "out"))
    assert raw == own_config | {"torch_dtype": "float32"}
    assert json.loads((tmp_path / "out" / "ftn_mask.json").read_text())["active"] == found.active.tolist()
    refused(capsys, 1, "exists already", "merge", *given)
    ftn.run("merge", ["merge", *given[::2], "--task=loud", "--overwrite", "--dtype=bfloat16"])
    again = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in again.values()} == {"bfloat16"}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    refused(capsys, 1, "so no merge wrote it, and is not replaced", "merge", given[0], f"--output={base}",
            "--task=loud", "--overwrite")  # fmt: skip
    assert ftn_jax.load_base(str(base)).hash == model.base.hash


@pytest.mark.parametrize("family", [name for name in toys.BASES if name != "gpt2"])
def test_the_weights_of_every_family_are_its_own_plus_the_update(family):
    """Tensor by tensor, by hand: transposed, in its checkpoint's names, and all others as they were."""
    config = toys.toy_family(family, **({"tie_word_embeddings": False} if family != "qwen2" else {}))
    params = toys.toy_base_params(config)
    delta = np.random.default_rng(0).normal(size=(2, 40, 24)).astype(np.float32)
    before = tensors_of(FAMILIES[family], config, params)
    after = tensors_of(FAMILIES[family], config, merged(params, {"self_attn.o_proj": delta}, config))
    assert before.keys() == after.keys() and ("lm_head.weight" in before) != config.tied
    for name, tensor in after.items():
        layer = re.fullmatch(r"model\.layers\.(\d)\.self_attn\.o_proj\.weight", name)
        expected = before[name] + delta[int(layer[1])].T if layer else before[name]
        np.testing.assert_allclose(tensor, expected, rtol=1e-6, err_msg=name)
    kernel = np.asarray(params["h"]["o"]["kernel"])
    np.testing.assert_array_equal(before["model.layers.1.self_attn.o_proj.weight"], kernel[1].T)


def test_an_exported_adapter_of_a_task(folder, model, tmp_path, capsys):
    given = [f"--workdir={folder / 'run'}", "--task=title", f"--output={tmp_path / 'out'}"]
    ftn.run("export", ["export", *given])
    said = capsys.readouterr().out
    rank = 4 * model.pool.rank
    assert said.splitlines() == [
        f"exported to {tmp_path / 'out'}, a PEFT LoRA of rank {rank}",
        f"it names its base {folder / 'base'}, on this machine: for another name, use ftn export "
        "--base_model_name_or_path=NAME",
    ]
    adapter = read_peft(tmp_path / "out", model.base)
    for module, pair in adapter.modules.items():
        rows = {side: np.asarray(leaf)[model.stored["title"]] for side, leaf in model.params[module].items()}
        delta = np.einsum("klri,klro->lio", rows["a"], rows["b"])
        np.testing.assert_allclose(np.einsum("lri,lro->lio", pair["a"], pair["b"]), delta, rtol=1e-4, atol=1e-6)
    ftn.run("export", ["export", *given, "--overwrite", "--rank=2", "--dtype=float16",
                       "--base_model_name_or_path=me/model"])  # fmt: skip
    said = capsys.readouterr().out
    assert "of rank 2" in said and "is lost at this rank" in said and "names its base" not in said
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["base_model_name_or_path"]) == (2, "me/model")
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"float16"}
    assert "base_model: me/model\n" in (tmp_path / "out" / "README.md").read_text()
    refused(capsys, 1, "rank is 99, expected 1 to 8", "export", *given, "--overwrite", "--rank=99")
    refused(capsys, 2, "--task and --support are missing", "export", given[0], given[2], "--overwrite")
    refused(capsys, 2, "dtype=int8", "export", *given, "--overwrite", "--dtype=int8")


def test_the_card_has_the_base_the_tasks_their_losses_and_the_command(folder, model, tmp_path):
    command = [
        "export",
        f"--workdir={folder / 'run'}",
        f"--support={folder / 'support.jsonl'}",
        f"--output={tmp_path / 'a b'}",
    ]
    ftn.run("export", command)
    card = (tmp_path / "a b" / "README.md").read_text()
    found = model.recover(PAIRS)
    assert f"`{model.base.hash}`" in card and str(folder / "base") in card
    assert f"is {found.base_loss:.3f} under the base alone and {found.loss:.3f} under the mask" in card
    (shown,) = re.findall(r"```bash\n(.*)\n```", card)
    assert shlex.split(shown) == ["ftn", *command]
    header = card.split("---\n")[1]
    assert header == "library_name: peft\ntags:\n- ftn_jax\n- lora\n"  # a path is no name of a base on the hub


def test_the_card_has_the_losses_of_the_run(folder, tmp_path):
    """The last that were measured of each task, of the seed that is exported."""
    run = shutil.copytree(folder / "run", tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    entry = results["methods"]["lora_ftn_reserve"]
    entry["stored"]["matrix"], entry["reconfig"]["matrix"] = [[[9.0, None], [1.25, 2.5]]], [[[3.75, 8.0], [None, 4.0]]]
    (run / "results.json").write_text(json.dumps(results))
    model = ftn_jax.load(run)
    model.export_peft(np.union1d(model.stored["title"][:3], model.stored["loud"][:1]), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| loud | 0.25 | 1.250 | 3.750 |\n| title | 0.75 | 2.500 | 4.000 |\n" in card
    assert "## Made by" not in card and "began with `<|endoftext|>`, and a prompt must" in card


def test_an_export_of_the_packaged_base_names_a_base_that_exists(model, tmp_path):
    base = ftn_jax.load_base("packaged")
    pool = ftn_jax.lora_pool(base, size=16, rank=2)
    packaged = dataclasses.replace(model, base=base, pool=pool, params=toys.toy_params(pool))
    packaged.export_peft("loud", tmp_path / "out")
    named = json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(PACKAGED) and ftn_jax.load_base(named).hash == base.hash
    (tmp_path / "out" / "ftn_mask.json").unlink()  # PEFT does not keep it
    assert read_peft(tmp_path / "out", base).rank == 8


def test_what_can_not_be_written(model, tmp_path):
    large = dataclasses.replace(model, params=jax.tree.map(lambda leaf: leaf + 1e5, model.params))
    for call, said in (
        (lambda: large.export_peft("loud", tmp_path / "x", dtype="float16"), "not finite in float16"),
        (lambda: large.merge("loud", tmp_path / "x", dtype="float16"), "not finite in float16"),
        (lambda: model.merge("loud", tmp_path / "x", dtype="int8"), "dtype is 'int8', expected float32, bfloat16"),
        (lambda: model.merge("quiet", tmp_path / "x"), "no task is named 'quiet'"),
    ):
        with pytest.raises(InputError, match=said):
            call()
    nothing = dataclasses.replace(model, params=jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), model.params))
    with pytest.raises(InputError, match="not finite, and can't be exported"):
        nothing.merge("loud", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_a_method_with_weights_of_its_own_for_a_mask_is_written_and_generates_with_these(model, tmp_path):
    """As PackNet and HAT have them: what answers is not the params as they are, but what the method makes of them."""

    def realise(params, extra, stage):
        return jax.tree.map(lambda leaf: leaf * np.float32(1 + stage.variant), params)

    method = dataclasses.replace(model.method, realise=realise)
    own = dataclasses.replace(model, method=method, variants={"loud": 2, "title": 0})
    assert own.generate(["a fox\n"], "loud", tokens=8) != model.generate(["a fox\n"], "loud", tokens=8)
    (tmp_path / "in.jsonl").write_text('{"prompt": "a fox\\n", "task": "loud"}')
    generate_file(own, tmp_path / "in.jsonl", tmp_path / "out.jsonl", None, Settings(tokens=8))
    (line,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert [line["completion"]] == own.generate(["a fox\n"], "loud", tokens=8)
    own.merge("loud", tmp_path / "merged")
    alone = without_components(model, ftn_jax.load_base(str(tmp_path / "merged")))
    losses = own.example_losses(PAIRS, "loud")
    np.testing.assert_allclose(alone.example_losses(PAIRS, None), losses, rtol=1e-5, atol=1e-5)
    own.export_peft("loud", tmp_path / "adapter")
    adapted = model.with_adapter(tmp_path / "adapter")
    np.testing.assert_allclose(adapted.example_losses(PAIRS, "adapter"), losses, rtol=1e-4)
    assert np.abs(losses - model.example_losses(PAIRS, "loud")).min() > 0.01
