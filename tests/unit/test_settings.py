"""From TOML and flags to a Config: what is wrong is named, with the nearest right one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from p2pmesh import load_config
from p2pmesh.config import Config, ModelConfig, Net, SkillConfig
from p2pmesh.engine import catalog
from p2pmesh.errors import ConfigError
from p2pmesh.peer import settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(text: str | bytes) -> Path:
        path = tmp_path / "peer.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return written


def test_nothing_given_is_the_defaults():
    assert load_config() == Config()


def test_every_level_of_a_file_is_read(write: Any):
    path = write("""
        name = "ada"
        embedder = "hash"
        [net]
        listen = ["/ip4/127.0.0.1/tcp/4001"]
        mdns = true
        [routing]
        lambda_s = 3
        [[models]]
        model = "echo"
        engine = "echo"
        tokens_per_s = 7
        [[models]]
        model = "/m.gguf"
        [[skills]]
        name = "art"
        examples = ["who painted it?"]
    """)
    config = load_config(path)
    assert config.net == Net(listen=("/ip4/127.0.0.1/tcp/4001",), mdns=True)
    assert config.models == (
        ModelConfig(model="echo", engine="echo", tokens_per_s=7.0),
        ModelConfig(model="/m.gguf"),
    )
    assert config.skills == (SkillConfig(name="art", examples=("who painted it?",)),)
    assert (config.name, config.embedder, config.routing.lambda_s) == ("ada", "hash", 3.0)
    assert load_config(str(path)) == config


def test_what_is_laid_over_wins_key_by_key_and_lists_whole(write: Any):
    path = write('name = "a"\nnet.listen = ["/x"]\nnet.mdns = true\nmodels = [{model = "m"}]')
    config = load_config(path, {"net": {"listen": ["/y"]}, "models": [{"model": "n"}], "state": "s"})
    assert (config.name, config.net.listen, config.net.mdns, config.state) == ("a", ("/y",), True, "s")
    assert config.models == (ModelConfig(model="n"),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("naem = 'x'", "unknown key naem; did you mean name?"),
        ("zzz = 1", "unknown key zzz; known are name, state,"),
        ("[nett]", "unknown key nett; did you mean net?"),
        ("net.jion = []", "unknown key net.jion; did you mean net.join?"),
        ("models = [{model = 'a'}, {modle = 'b'}]", "unknown key models.modle; did you mean models.model?"),
        ("[[skills]]\nexmples = []", "unknown key skills.exmples; did you mean skills.examples?"),
        ("name = 3", "name must be a text, not a whole number"),
        ("net = 3", "net must be a table, not a whole number"),
        ("net.mdns = 'yes'", "net.mdns must be true or false, not a text"),
        ("net.listen = 'x'", "net.listen must be a list, not a text"),
        ("net.listen = [1]", "net.listen[0] must be a text, not a whole number"),
        ("models = {model = 'x'}", "models must be a list, not a table"),
        ("[[models]]", "missing required field model - at models[0]"),
        ("engine.slots = 1.5", "engine.slots must be a whole number, not a decimal number"),
        ("engine.slots = 0", "engine.slots must be above 0 and finite, not 0"),
        ("skills = [{name = 'x', examples = ['a'], quality = 2}]", "quality of 'x' must lie within 0..1"),
        ("skills = [{name = 'x'}]", "skill 'x' needs at least one example prompt"),
        ("models = [" + "{model = 'm'}," * 17 + "]", "17 models, at most 16"),
        (f"name = '{'x' * 65}'", "name is 65 bytes long, at most 64"),
        (f"name = '{'ü' * 33}'", "name is 66 bytes long, at most 64"),
        ("x = ", "is not TOML"),
        (b"\xff", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(write: Any, text: str | bytes, said: str):
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(write: Any, tmp_path: Path):
    with pytest.raises(ConfigError, match="none: No such file"):
        load_config(tmp_path / "none")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="longer than"):
        load_config(write("#" * (settings.FILE_BYTES_MAX + 1)))


def test_a_relative_model_counts_from_the_folder_of_its_file(tmp_path: Path):
    file = tmp_path / "peer.toml"
    file.write_text(
        'models = [{model = "a.gguf", adapter = "l.gguf"}, {model = "/b/c.gguf"}, {model = "~/d.gguf"}, '
        '{model = "name"}]'
    )
    models = [model.model for model in load_config(file).models]
    assert models == [str(tmp_path / "a.gguf"), "/b/c.gguf", "~/d.gguf", "name"]
    assert load_config(file).models[0].adapter == str(tmp_path / "l.gguf")


def test_what_the_program_lays_over_is_checked_too():
    with pytest.raises(ConfigError, match=r"unknown key net\.jion; did you mean net\.join"):
        load_config(None, {"net": {"jion": []}})


def test_examples_are_lines_but_for_remarks(tmp_path: Path):
    path = tmp_path / "art"
    path.write_text("# about art\n\n  who painted it?  \nwhat is blue?\n" + "more\n" * 100, encoding="utf-8")
    found = settings.examples(path)
    assert found[:2] == ("who painted it?", "what is blue?")
    assert len(found) == settings.EXAMPLES_MAX
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no example prompt"):
        settings.examples(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="are not text"):
        settings.examples(path)
    with pytest.raises(ConfigError, match="cannot read the examples"):
        settings.examples(tmp_path / "none")


def test_the_default_model_is_taken_only_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(catalog, "names", lambda: {catalog.DEFAULT: tmp_path})
    assert settings.with_default_model(Config()).models == (ModelConfig(model=catalog.DEFAULT),)
    monkeypatch.setattr(catalog, "names", dict)
    assert settings.with_default_model(Config()).models == ()
