"""What people look at: tables, charts, pages and pictures."""
