"""Text generation on llama-cpp-python: many requests in one batch, on the library's raw calls.

What is decided is apart from what is done. The scheduler knows no model: it is told which tokens were computed and
answers with what to compute next. Only the native part and the engine touch the library.

::

    engine      the StepEngine that puts the rest together
     ├─ slots        who is in the next batch, and who may come in        ┐
     │   └─ sharing      which sequence takes what from which             │ pure
     │       ├─ ledger       which sequence pays for which KV cell        │
     │       ├─ store        what of ended requests is kept elsewhere     │
     │       └─ prefix       a radix tree over token ids                  ┘
     ├─ text, template, literal, grammar, tools      from messages to tokens, from tokens to text and tool calls
     └─ model, native, sampler, logs        the library's file, calls and samplers, its log
                 └─ cache        the KV cache
                     └─ cells    the order of its cells, and when to tidy up     pure

"""
