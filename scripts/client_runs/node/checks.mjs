// Runs the checks of a client and prints one row per check, in the format of rows.py.

import { readFileSync } from "node:fs";

export async function run(client, packageName, checks) {
  const place = new URL(`node_modules/${packageName}/package.json`, import.meta.url);
  const version = JSON.parse(readFileSync(place)).version;
  for (const [ran, check] of Object.entries(checks)) {
    const row = { client, version, ran, result: "passed" };
    try {
      row.remark = await check();
    } catch (error) {
      console.error(error);
      Object.assign(row, { result: "failed", remark: String(error) });
    }
    console.log(JSON.stringify(row));
  }
}
