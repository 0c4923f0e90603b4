"""The same run under every launcher: its workers started, watched, stopped, started again."""
