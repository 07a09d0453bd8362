"use strict";
// A click on a method of the legend hides it in all charts.
for (const button of document.querySelectorAll(".legend button")) {
  button.onclick = () => {
    const hide = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!hide));
    for (const part of document.querySelectorAll("svg [data-name]"))
      if (part.dataset.name === button.dataset.name) part.classList.toggle("off", hide);
  };
}

// Over a chart of lines: the values of the step that is nearest to the pointer.
const tip = document.getElementById("tip");
const numbers = text => text.split(" ").map(Number);
for (const chart of document.querySelectorAll("svg.chart")) {
  const lines = [...chart.querySelectorAll('g.line:not([data-x=""])')].map(group => ({
    group,
    x: numbers(group.dataset.x),
    y: group.dataset.y.split(" "),
    places: [...group.querySelector(".line-line").points].map(point => point.x),
  }));
  const guide = chart.querySelector(".guide");
  const leave = () => { tip.hidden = true; guide.style.visibility = "hidden"; };
  chart.onpointerleave = leave;
  chart.onpointermove = event => {
    const shown = lines.filter(line => !line.group.classList.contains("off"));
    if (!shown.length) return leave();
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).x;
    const all = shown.flatMap(line => line.places.map((place, i) => [Math.abs(place - at), place, line.x[i]]));
    const [, place, step] = all.reduce((best, one) => one[0] < best[0] ? one : best);
    guide.setAttribute("x1", place);
    guide.setAttribute("x2", place);
    guide.style.visibility = "visible";
    const values = shown.map(line => [line.group.dataset.name, line.y[line.x.indexOf(step)]]);
    const told = values.filter(([, value]) => value !== undefined);
    tip.textContent = [`step ${step}`, ...told.map(([name, value]) => `${name}  ${value}`)].join("\n");
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  };
}
