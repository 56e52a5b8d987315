"""The dashboard: a web page on which thresholds are chosen, looked at, saved and exported.

datasets.py   the datasets that are shown, each with its scores open in DuckDB
view.py       what a page shows, as a link says it
files.py      clips by HTTP range out of the media tars, thumbnails, downloads
figures.css.j2, page.css.j2 and the templates of `pipelines.figures` draw; NiceGUI (on FastAPI) carries the rest
decide_page.py, statistics_page.py, clip_page.py, compare_page.py, errors_page.py, live_page.py   one page each
export_dialog.py   an export that a person watches and can end
server.py     puts them together; `clipmill dashboard` runs it, a service mounts it
"""
