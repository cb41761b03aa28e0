"""The verbs of the command line, by what they are about: `proof` (derive, kernels), `learning` (evaluate, fit), `laws` (sample,
tail), `networks` (compile), `pages` (report, example, doctor, completion). They share `options` and `screen`. Each verb
imports what it calls only when it runs, so that `elbotree --help` stays quick."""
