"""Sources to conversations: `reading` files and datasets, `forms` of rows, their `messages`; or as `streams`, in `windows`."""
