// Draws a minute of one run: per machine, prompts as bars, transfers, and how many requests decode.
(() => {
  const runs = JSON.parse(document.getElementById("runs").textContent);
  const pick = document.getElementById("gantt-run"), from = document.getElementById("gantt-from");
  const said = document.getElementById("gantt-said"), svg = document.getElementById("gantt");
  const NS = "http://www.w3.org/2000/svg", W = 1000, LEFT = 150, SPAN = 60000;
  const make = (name, attributes, text) => {
    const node = document.createElementNS(NS, name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  function draw() {
    const run = runs[pick.value], start = 1000 * from.value, end = start + SPAN;
    const lane = run.machines.length > 16 ? 22 : 34, height = 24 + lane * run.machines.length + 20;
    const x = t => LEFT + (W - LEFT - 8) * (Math.min(Math.max(t, start), end) - start) / SPAN;
    const parts = document.createDocumentFragment();
    run.machines.forEach((name, m) => {
      const top = 24 + m * lane;
      parts.append(make("path", { class: "lane", d: `M0 ${top + lane - 2}H${W}` }));
      parts.append(make("text", { class: "label", x: 2, y: top + lane / 2 + 3 }, `${m} ${name}`));
    });
    const decodes = run.machines.map(() => new Float64Array(300));
    let prompts = 0, waits = 0, split = 0;
    for (const [arrival, begun, done, there, decode, finish, p, t] of run.rows) {
      if (p >= 0 && begun >= 0 && begun < end && (done < 0 ? end : done) > start) {
        const a = x(begun), top = 24 + p * lane + 2;
        const bar = make("rect", { class: "bar-prompt", x: a, y: top, width: Math.max(.8, x(done < 0 ? end : done) - a), height: lane * .42 });
        bar.append(make("title", {}, `prompt on machine ${p}, ${(begun / 1000).toFixed(2)} s to ${(done / 1000).toFixed(2)} s, waited ${((begun - arrival) / 1000).toFixed(2)} s`));
        parts.append(bar);
        prompts += 1; waits += begun - arrival; split += p !== t;
        if (p !== t && there > done) parts.append(make("rect", { class: "bar-ship", x: x(done), y: top, width: Math.max(.8, x(there) - x(done)), height: lane * .42 }));
      }
      if (t >= 0 && decode >= 0 && decode < end && (finish < 0 ? end : finish) > start) {
        const first = Math.max(0, Math.floor((decode - start) / SPAN * 300));
        const last = Math.min(299, Math.floor(((finish < 0 ? end : finish) - start) / SPAN * 300));
        for (let i = first; i <= last; i++) decodes[t][i] += 1;
      }
    }
    const most = Math.max(1, ...decodes.map(d => Math.max(...d)));
    decodes.forEach((counts, m) => {
      const base = 24 + m * lane + lane - 3, tall = lane * .42;
      let d = `M${LEFT} ${base}`;
      counts.forEach((n, i) => { const a = LEFT + (W - LEFT - 8) * i / 300; d += `L${a.toFixed(1)} ${(base - tall * n / most).toFixed(1)}`; });
      parts.append(make("path", { class: "bar-decode", d: d + `L${W - 8} ${base}Z` }));
    });
    for (let s = 0; s <= 60; s += 10) {
      const a = x(start + 1000 * s);
      parts.append(make("path", { class: "grid", d: `M${a} 18V${height - 20}` }));
      parts.append(make("text", { class: "tick", x: a, y: 12, "text-anchor": s === 60 ? "end" : "middle" }, `${+from.value + s} s`));
    }
    svg.replaceChildren(parts);
    svg.setAttribute("viewBox", `0 0 ${W} ${height}`);
    const mean = prompts ? (waits / prompts / 1000).toFixed(2) : "-";
    said.textContent = `${run.name}, from ${from.value} s: ${prompts} prompts, mean wait ${mean} s, ` +
      `${prompts ? Math.round(100 * split / prompts) : 0} % of them split; at most ${most} requests decode on one machine.`;
    svg.setAttribute("aria-label", said.textContent);
  }
  function choose() { from.max = Math.max(0, Math.floor(runs[pick.value].end / 1000) - 60); if (+from.value > +from.max) from.value = from.max; draw(); }
  pick.addEventListener("change", choose);
  from.addEventListener("input", draw);
  choose();
})();
