//! A problem with its place in the file, as people see it: file:line:column, the line, a caret, a hint.
