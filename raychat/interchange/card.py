"""The model card of an exported model: README.md, as the Hugging Face hub shows it."""

from typing import Any

from raychat.checkpoint import Meta
from raychat.interchange.hf_export import Exported
from raychat.report.figures import collect
from raychat.report.markdown import table_text
from raychat.report.tables import Table, number, tables_of
from raychat.runs import STAGES, Found

_FORMS = {
    "nanochat": "The architecture is nanochat's of October 2025: `NanoChatForCausalLM` in transformers.",
    "gpt2": "The architecture is GPT-2: `GPT2LMHeadModel` in transformers.",
    "raychat": "The architecture is nanochat's GPT with {parts}. transformers does not have it: the folder brings its "
    "code, `modeling_raychat.py`, which needs PyTorch and transformers alone.",
}
_PARTS = {
    "value_embeddings": "value embeddings",
    "residual_scalars": "residual scalars",
    "smear": "smear",
    "backout": "backout",
}
_LOAD = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
model = AutoModelForCausalLM.from_pretrained("{name}"{trust})
{ask}
```"""
_CHAT = """\
talk = [{"role": "user", "content": "Hello!"}]
prompt = tokenizer.apply_chat_template(
    talk, add_generation_prompt=True, sanitize_control_tokens=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens=200)[0, prompt["input_ids"].size(1) :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""
_CONTINUE = """\
start = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**start, max_new_tokens=200)[0], skip_special_tokens=True))"""


def figures(run_folder: str) -> dict[str, Any] | None:
    """Return what the report of a run would say; None for a run without stages of its own, such as an imported one."""
    try:
        return collect(run_folder)[0]
    except ValueError:
        return None


def card(
    found: Found,
    meta: Meta,
    form: Exported,
    report: dict[str, Any] | None,
    *,
    name: str,
    chat: bool,
    license: str | None = None,
) -> str:
    """Return the card's text. What was not measured is left out.

    Args:
        report: of `figures`.
        name: what the model is loaded by.
        chat: whether it has learned to chat.
        license: the hub's name of a license; None = the card names none.
    """
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [raychat]"]
    head += [f"license: {license}"] if license else []
    stage, trust = found.stage.upper(), ", trust_remote_code=True" if form.remote_code else ""
    params = sum(tensor.numel() for tensor in form.weights.values())
    parts = [
        "\n".join(["---", *head, "---"]),
        f"# {found.run} {stage}",
        f"A language model of {params:,} parameters, trained with raychat: the run `{found.run}`, stage {stage}, after "
        f"{meta.step:,} steps.",
        "## How to load it",
        _LOAD.format(name=name, trust=trust, ask=_CHAT if chat else _CONTINUE),
        "## Architecture",
        _architecture(meta.recipe.model, form.config["model_type"]),
        *map(table_text, _tables(found, report)),
    ]
    return "\n\n".join(parts) + "\n"


def _architecture(model: dict[str, Any], form: str) -> str:
    on = [text for key, text in _PARTS.items() if model.get(key)]
    on.insert(0, f"sliding windows (`{model.get('window_pattern')}`, S = a quarter of the context)")
    sizes = {
        "layers": "n_layer",
        "width": "n_embd",
        "heads": "n_head",
        "key/value heads": "n_kv_head",
        "context": "sequence_len",
        "vocabulary": "vocab_size",
    }
    lines = [f"- {title}: {model[key]:,}" for title, key in sizes.items() if key in model]
    return "\n".join([_FORMS[form].format(parts=", ".join(on)), "", *lines])


def _tables(found: Found, report: dict[str, Any] | None) -> list[Table]:
    """Return what the stages up to this one were trained on and reached, those of which something is known."""
    before = STAGES[: STAGES.index(found.stage) + found.latest]  # figures of a stage are those of its last step
    stages = {name: figures for name, figures in (report or {}).get("stages", {}).items() if name in before}
    if not report or not stages:
        return []
    rows = [
        [name.upper(), number(figures.get("steps"), ",d"), number(figures.get("tokens"), ",d"), _data(figures)]
        for name, figures in stages.items()
    ]
    measured = [t for t in tables_of(report | {"stages": stages}) if t.title in ("Results", "CORE by task")]
    return [Table("Training", ["stage", "steps", "tokens", "data"], rows), *measured]


def _data(figures: dict[str, Any]) -> str:
    settings = figures.get("settings", {})
    return ", ".join([*settings.get("data", ()), *settings.get("tasks", ())]) or "-"
