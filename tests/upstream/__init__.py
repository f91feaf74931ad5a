"""Following llama.cpp: a build of its source, held against everything that `launch` relies on."""
