"""`anomaly-bench completion bash|zsh|fish`: the script that has the shell ask `anomaly-bench completion query LINE`."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_bench.cli.completion import candidates
from anomaly_bench.errors import Exit, UsageError

# bash completes only what follows a = or :, so the part of the word before it is cut off
BASH = r"""_anomaly_bench() {
  local line="${COMP_LINE:0:COMP_POINT}"
  mapfile -t COMPREPLY < <(anomaly-bench completion query "$line" 2>/dev/null)
  local word="${line##* }"
  local before="${word%"${word##*[=:]}"}"
  COMPREPLY=("${COMPREPLY[@]#"$before"}")
  [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o default -F _anomaly_bench anomaly-bench
"""
ZSH = r"""#compdef anomaly-bench
_anomaly_bench() {
  local -a found
  found=(${(f)"$(anomaly-bench completion query "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
  if (( $#found )); then
    compadd -S '' -- ${(M)found:#*=}
    compadd -- ${found:#*=}
  else
    compset -P '*='
    _files
  fi
}
compdef _anomaly_bench anomaly-bench
"""
FISH = """complete -c anomaly-bench -a '(anomaly-bench completion query (commandline -cp | string collect) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def command(subject: str, words: Sequence[str]) -> int:
    """Print a shell's script, or what may follow a line.

    Raises:
        UsageError: words after the shell, or not one line.
    """
    from anomaly_bench.cli.main import SUBJECTS

    if subject == "query":
        if len(words) != 1:
            raise UsageError(f"completion query: expected one line in quotes, found {len(words)} words")
        for each in candidates(words[0], SUBJECTS):
            print(each)
        return Exit.DONE
    if words:
        raise UsageError(f"completion {subject}: takes no keys, found {words[0]}")
    print(SCRIPTS[subject], end="")
    return Exit.DONE
