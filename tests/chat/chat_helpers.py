"""Shared values of the chat tests."""

IM_START, IM_END = 4094, 4095
"""The ids of ChatML's tokens in the tokenizer of `chatml_json`."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
