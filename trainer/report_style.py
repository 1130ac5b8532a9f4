"""The look of report.html: light and dark, wide and narrow, also on paper."""

STYLE = """
:root{--paper:#f6f5f2;--card:#fff;--ink:#1d1b18;--quiet:#6b665e;--rule:#e3dfd8;--dense:#2f6f9f;--hot:#c2410c;
--hot-soft:#fbeadf;--good:#2e7d4f;--good-soft:#e3f3e9;--bad:#b3261e;--bad-soft:#fbe4e2;--band:#f3f0ea;--band2:#e9e4da;
color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#161513;--card:#201e1b;--ink:#efece6;--quiet:#a39d93;--rule:#37332e;
--dense:#7ab8e6;--hot:#ff8a4c;--hot-soft:#3d2415;--good:#6fce95;--good-soft:#1b3325;--bad:#ff8f87;--bad-soft:#3f1d1b;
--band:#262320;--band2:#312d28}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:1.15rem;margin:0;font-weight:600}
h2{font-size:1.15rem;margin:44px 0 4px}
h2+p{margin-top:0}
p{margin:.4em 0;max-width:70ch}
.quiet,.lead{color:var(--quiet)}
.result{font-size:clamp(1.5rem,4.6vw,2.3rem);line-height:1.2;font-weight:700;margin:.35em 0 .4em;max-width:32ch;
letter-spacing:-.015em;text-wrap:balance}
.result em{font-style:normal;color:var(--hot)}
.brand{display:flex;gap:12px;align-items:center;flex-wrap:wrap}
.tag{font-size:.78rem;padding:2px 9px;border-radius:99px;background:var(--hot-soft);color:var(--hot);font-weight:600}
.tag.good{background:var(--good-soft);color:var(--good)}.tag.bad{background:var(--bad-soft);color:var(--bad)}
.warning{background:var(--bad-soft);color:var(--bad);border-radius:10px;padding:10px 14px;margin:14px 0;max-width:none}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(45%,145px),1fr));background:var(--card);
border:1px solid var(--rule);border-radius:12px;overflow:hidden;margin:22px 0}
.facts div{white-space:nowrap;box-shadow:0 0 0 .5px var(--rule);padding:10px 14px}
.facts dt,.small{font-size:.8rem;color:var(--quiet)}.facts dd{margin:0;font-weight:600}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:16px;margin:16px 0}
.card,.chart,.scroll{background:var(--card);border:1px solid var(--rule);border-radius:12px}
.card{padding:18px 20px}
.card h3{margin:0 0 10px;font-size:1rem;display:flex;gap:8px;align-items:center;justify-content:space-between}
.card .size{font-size:1.9rem;font-weight:700;line-height:1.1;letter-spacing:-.02em}
.card.dense .size{color:var(--dense)}.card.small-model .size{color:var(--hot)}
.card dl{margin:14px 0 0;display:grid;grid-template-columns:1fr auto;gap:6px 12px}
.card dt{color:var(--quiet)}.card dd{margin:0;font-weight:600;text-align:right;font-variant-numeric:tabular-nums}
.card dd small{font-weight:400;color:var(--quiet);margin-left:.4em}
.bar{display:block;height:10px;border-radius:5px;background:var(--band2);overflow:hidden;margin:8px 0}
.bar i{display:block;height:100%;min-width:2px;background:var(--hot)}.bar.dense i{background:var(--dense)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:16px;margin:14px 0}
.chart{margin:0;padding:14px 12px 6px}
.chart figcaption{font-weight:600;padding:0 6px}.chart figcaption .quiet{font-weight:400;font-size:.8rem}
.chart svg{display:block;width:100%;height:auto;overflow:visible}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.85rem;color:var(--quiet);padding:2px 6px 6px}
.legend b{color:var(--ink);font-variant-numeric:tabular-nums}
.swatch{display:inline-block;width:14px;height:4px;border-radius:2px;margin-right:6px;vertical-align:middle;
background:currentColor}
.swatch.cold,.cold{color:var(--dense)}.swatch.hot,.hot{color:var(--hot)}.swatch.third,.third{color:var(--good)}
svg text{font-family:inherit;fill:var(--quiet);font-size:12px}svg .phase{font-size:11px}
.band1{fill:var(--band)}.band0{fill:var(--band2)}
.grid{stroke:var(--rule);stroke-width:1}
.line{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}.line.faint{opacity:.28;stroke-width:1}
.dot{fill:currentColor;stroke:var(--card);stroke-width:1}
.scroll{overflow-x:auto;margin:14px 0}
.techniques td:nth-child(2),.techniques th:nth-child(2){text-align:left}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:9px 14px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-size:.8rem;color:var(--quiet);font-weight:600}
tr:last-child td{border-bottom:0}
th:first-child,td:first-child{text-align:left}
td.text,th.text{text-align:left;white-space:normal}
code,pre{font:0.86em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
td .bar{min-width:110px;margin:0}
.layers td{padding:5px 14px}.layers td:nth-child(3){width:50%}
details{background:var(--card);border:1px solid var(--rule);border-radius:12px;margin:14px 0}
summary{cursor:pointer;padding:12px 16px;font-weight:600}
details pre{margin:0;padding:4px 16px 16px;overflow-x:auto}
details p,details dl{padding:0 16px}details dt{font-weight:600;margin-top:10px}details dd{margin:0;max-width:70ch}
footer{margin-top:44px;color:var(--quiet);font-size:.85rem}
@media (max-width:600px){svg text{font-size:14px}svg .phase{font-size:13px}
main{padding:20px 14px 48px}th,td{padding:7px 6px}.layers td{padding:5px 6px}
table{font-size:.82rem}th{white-space:normal}td .quiet{display:none}td .bar{min-width:70px}
.layers td.shape,.layers th.shape{display:none}}
@media print{body{background:#fff}.card,.chart,details{break-inside:avoid}}
""".strip()
