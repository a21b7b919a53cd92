"""The mode `compare`: one table and one page about many training runs. Start reading in `page.py`."""
