"""Measure a live OpenAI-compatible vLLM server into a profile: `splitgym profile measure`.

`plan` says what is measured, `sweep` how, `run` does it within its limits, `store` keeps every run, `write`
makes the profile. Only `plan` can be used without the [router] extra.
"""
