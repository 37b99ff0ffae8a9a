"""Style and script of the frontier page. The script only makes tooltips quicker; nothing depends on it."""

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--panel:#fff;--ink:#17202b;--soft:#5a6776;--rule:#dfe4ea;
--grid:#eceff3;--accent:#1f5fc4;--pale:#b4bfcc;--static:#b9540b;--good:#15713b;--warn:#8a5a00;--bad:#a02c2c;
--c0:#1f5fc4;--c1:#b9540b;--c2:#15803d;--c3:#7a3ec8;--c4:#b6246f;--c5:#0b7285}
@media(prefers-color-scheme:dark){:root{--bg:#10151c;--panel:#161d26;--ink:#e5eaf0;--soft:#9aa7b6;--rule:#2b3542;
--grid:#222b36;--accent:#6ea8ff;--pale:#4b5969;--static:#f2a25c;--good:#5fcf8b;--warn:#e6b450;--bad:#f08a8a;
--c0:#6ea8ff;--c1:#f2a25c;--c2:#5fcf8b;--c3:#b794f6;--c4:#f48fb7;--c5:#5cc8d7}}
*{box-sizing:border-box}
body{margin:0;
background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:24px;margin:0 0 12px;overflow-wrap:anywhere}h2{font-size:18px;margin:36px 0 4px}
p{margin:0 0 10px;max-width:75ch}.note,footer{color:var(--soft);font-size:14px}
.verdict{padding:10px 14px;border-left:4px solid var(--warn);background:var(--panel);
box-shadow:0 0 0 1px var(--rule);max-width:none}
.verdict.better{border-color:var(--good)}.verdict.nothing{border-color:var(--bad)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 16px;margin:14px 0 0;font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.panels{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:14px;margin-top:10px}
figure{margin:0;background:var(--panel);box-shadow:0 0 0 1px var(--rule);border-radius:4px;
padding:8px;min-width:0}
figure.wide{grid-column:1/-1}svg{display:block;width:100%;max-width:600px;margin:0 auto;height:auto;
font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
figure.wide svg{min-width:560px;max-width:820px}.scroll{overflow-x:auto}
.frame{fill:none;stroke:var(--rule)}.grid{stroke:var(--grid)}line.zero{stroke:var(--soft)}
text{fill:var(--ink)}text.tick{fill:var(--soft);font-size:11px}text.axis{fill:var(--soft)}
text.title{font-weight:600;font-size:13px}
text.label{font-weight:600;paint-order:stroke;stroke:var(--panel);stroke-width:3px;stroke-linejoin:round}
text.quiet{font-weight:400;fill:var(--soft)}
.pale{fill:var(--pale)}.front{fill:var(--accent)}.candidate{fill:var(--accent);stroke:var(--ink);stroke-width:1.5}
.extrapolated{fill:none;stroke:var(--c3);stroke-width:1.6;stroke-dasharray:2.2 1.8}
.production{fill:var(--ink)}.static{fill:var(--panel);stroke:var(--static);stroke-width:2}
.front-line{fill:none;stroke:var(--accent);stroke-width:1.5;opacity:.6}
.whisker{stroke:var(--accent);opacity:.22}.whisker.strong{opacity:.75;stroke-width:1.5}
.whisker.static-line{stroke:var(--static);opacity:.8;stroke-width:1.5}
.tie{stroke:var(--static);stroke-dasharray:3 3}.leader{stroke:var(--soft);stroke-width:.8}
.reference{stroke:var(--soft);stroke-dasharray:5 4}
.curve{fill:none;stroke-width:2}.band{opacity:.16}.band.outer{opacity:.09}
.curve.c0{stroke:var(--c0)}.curve.c1{stroke:var(--c1)}.curve.c2{stroke:var(--c2)}
.curve.c3{stroke:var(--c3)}.curve.c4{stroke:var(--c4)}.curve.c5{stroke:var(--c5)}
.c0{fill:var(--c0)}.c1{fill:var(--c1)}.c2{fill:var(--c2)}.c3{fill:var(--c3)}.c4{fill:var(--c4)}.c5{fill:var(--c5)}
polyline.curve{fill:none}
[data-tip]{cursor:default}[data-tip]:hover{stroke:var(--ink);stroke-width:2}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;list-style:none;margin:8px 0 0;padding:0;
font-size:13px;color:var(--soft)}
.key{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:6px;background:var(--accent)}
.key.candidate{border:1.5px solid var(--ink);width:12px;height:12px;vertical-align:-1px}
.key.extrapolated{background:none;border:1.6px dashed var(--c3)}
.key.pale{background:var(--pale)}.key.production{background:var(--ink)}
.key.static{background:none;border:2px solid var(--static);border-radius:0;transform:rotate(45deg) scale(.85)}
table{border-collapse:collapse;font-size:13px;margin-top:12px;font-variant-numeric:tabular-nums;width:100%}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--soft);font-weight:600;white-space:normal;vertical-align:bottom;min-width:64px}
th:first-child,td:first-child{text-align:left}td:first-child small{white-space:normal;max-width:230px}
td small{display:block;color:var(--soft);font-size:11.5px}
td{vertical-align:top}tr.quiet td{color:var(--soft)}summary{cursor:pointer;color:var(--soft);font-size:14px}
#tip{position:fixed;z-index:9;pointer-events:none;white-space:pre-line;background:var(--ink);color:var(--bg);
font-size:12.5px;line-height:1.45;padding:6px 9px;border-radius:4px;max-width:min(340px,90vw)}
@media(max-width:560px){dl{grid-template-columns:1fr}dt{margin-top:6px}}
@media print{details{display:block}figure{break-inside:avoid}}
"""

SCRIPT = """
(() => {
  const box = document.getElementById("tip");
  for (const mark of document.querySelectorAll("[data-tip]")) {
    const title = mark.querySelector("title"), text = title.textContent;
    title.remove();
    mark.setAttribute("aria-label", text);
    mark.addEventListener("pointerenter", () => { box.textContent = text; box.hidden = false; });
    mark.addEventListener("pointermove", (event) => {
      const wide = box.offsetWidth, high = box.offsetHeight;
      const left = Math.min(event.clientX + 14, innerWidth - wide - 8);
      const above = event.clientY - high - 12;
      box.style.left = Math.max(8, left) + "px";
      box.style.top = (above > 4 ? above : event.clientY + 18) + "px";
    });
    mark.addEventListener("pointerleave", () => { box.hidden = true; });
  }
})();
"""
